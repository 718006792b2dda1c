"""Medical image classification whose numbers can be believed.

The rooms of the house, in the order in which data passes through them:
``settings`` → ``data`` (or ``phantoms``) → ``pipeline`` → ``training`` → ``tuning``;
``experiment`` knows where a run keeps what it needs and what it found.
``normalization``, ``augmentation``, ``models``, ``evaluation``, ``explain`` and ``figures`` take
arrays, tables or models and know nothing of where they came from. The notebooks and
``python -m covid_project`` stand on top.
"""
