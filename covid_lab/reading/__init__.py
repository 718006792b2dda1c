"""Any user's images as one table of path, label, split and patient.

`roots` opens folders, zip and tar archives and NumPy files; `dicom` reads DICOM; `layouts` finds
labels in the folders, `manifests` in a table; `patients` finds the patients; `collection` puts
these together and counts what is not used. `covid_lab.datasets.open_dataset` is the way in.
"""
