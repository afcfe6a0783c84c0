"""How a function of one device's share is mapped over all devices: shard_map, or pmap."""

AXIS = "data"  # the mesh's one axis; pass it as `axis_name` to whatever talks to other devices
