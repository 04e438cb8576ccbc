"""What happened on nodes, as records that can be believed: the envelope, the kinds, the spool on a node, batches."""
