"""`--vet`: nodes checked before a job's application starts."""
