"""Where media live: an S3-compatible bucket or a local directory, behind the same presigned URLs."""
