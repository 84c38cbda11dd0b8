"""Checks what one deploys on AWS, without AWS: ``make check-deploy``."""
