"""What the tests run in processes of their own: groups of ranks, their jobs and the states they save."""
