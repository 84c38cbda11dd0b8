"""Workers as pods: one ReplicaSet per pool, scaled by the scheduler itself."""
