"""Studies of other data sets on the same core: one module and one notebook in ``studies/`` each.

A study's module has ``load_settings`` and ``begin``, as the four notebooks have them; that is what
``python -m covid_lab run --study NAME`` calls. The core never imports from here.
"""
