"""`kshot sweep`: search over settings of a run file, by one process or many that share a study."""
