"""Any user's images as one table of path, label, split and patient.

`roots` opens folders, zip and tar archives and NumPy files; `dicom` reads DICOM; `layouts` finds
labels in the folders, `manifests` in a table; `patients` finds the patients, `origins` the sources
and lung masks; `collection` combines these and counts what is not used. The entry point is
`covid_lab.datasets.open_dataset`.
"""
