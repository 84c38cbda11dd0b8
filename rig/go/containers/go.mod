module dask-tide/rig/containers

go 1.25.0
