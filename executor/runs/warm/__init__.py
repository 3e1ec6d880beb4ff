"""Step 5 of 7, made cheap: processes that have imported Ansible once and fork for each run. Cold is always possible."""
