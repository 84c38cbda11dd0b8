"""The project's own test cluster: a real Kubernetes on one machine, for people and for pytest.

``python -m rig up`` starts one; ``rig/README.md`` says the rest.
"""
