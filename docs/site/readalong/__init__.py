"""The read-along site: code beside prose and equations, written into mkdocs pages by ``docs/site/hook.py``."""
