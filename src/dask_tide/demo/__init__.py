"""The demo: what this project is for, told on a live cluster with a real job.

``dask tide demo`` runs it (:mod:`~dask_tide.demo.run`). The job is in :mod:`~dask_tide.demo.job`
(what its tasks find out, in :mod:`~dask_tide.demo.source`);
it is watched from outside (:mod:`~dask_tide.demo.recorder`), shown (:mod:`~dask_tide.demo.screen`),
checked (:mod:`~dask_tide.demo.story`) and drawn (:mod:`~dask_tide.demo.picture`). On Kubernetes its
place is made or reached by :mod:`~dask_tide.demo.kubernetes`.
"""
