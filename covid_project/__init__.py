"""COVID-19 or normal? Chest radiographs classified, explained and evaluated with intervals.

The four notebooks import this package. Data pass through its modules in this order:
``settings``, ``data``, ``pipeline`` (with ``augmentation``), ``models`` (with ``normalization``),
``training``, ``tuning``, ``evaluation``, ``gradcam``, ``figures``. ``results`` opens a run and
keeps what it finds; ``files`` writes files that are whole or absent. Examples in docstrings use
``run``, ``settings``, ``images``, ``labels`` and ``model`` as the notebooks have them.
"""
