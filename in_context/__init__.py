"""In-context learning as softmax regression, from exact theory to trained attention."""
