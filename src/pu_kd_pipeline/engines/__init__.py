"""Who works on shards: this process, further processes, or the actors of a Ray cluster.

`tables` has the seam: makers of the shards of a table, which `ShardedTable.write` hands to an
engine. `shards` distributes work, whatever the workers are; `worker` is what runs in each of them.
Only `ray_cluster` imports Ray, when a run asks for it.
"""
