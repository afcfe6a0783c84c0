"""What each kind of study hands to the loop."""
