"""Seeding: everything that writes to the store — secrets, buckets, users, sample models, downloads and publication.

`python -m seeding --help` lists the commands. Objects are moved by MinIO's own client `mc`; what a release is, and when
one may exist, is decided by `weightless.publish`.
"""
