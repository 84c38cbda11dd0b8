"""A simulated AWS for the level *cloud*: moto with its gaps mended, and an EC2 whose instances boot.

``server`` is the process; ``rig.cloud`` starts it and talks to it.
"""
