"""What the tests share, by question.

What is saved: `states`, `strategies`, `indexes`. How it is saved and loaded: `jobs` in ranks and in the test's own
process, `steps` callback by callback, `planning` with two planners; `model` says what must come of it.
In which process: `ranks` (groups that live on), `zygote` (ranks to be killed), `children` (forks); `group_jobs`,
`async_jobs`, `kill_jobs`, `pacing_jobs`, `memory_job` and `leaks` are what runs there.
With which server: `store` (a bucket as boto3 sees it), `by_hand` (requests one by one), `wire` (servers and proxies
that misbehave as a script says), `faults` and `fault_matrix` (what goes wrong, and what must come of it), `real` (other
S3 servers). With which torch: `torch_versions`. How a script of several ranks ends: `scripts`.
And `chance` (how often, from which seed), `pages` (the documentation taken apart).
"""
