"""Load tests in Locust: predictions through the front door, and cold starts, slim against embedded.

`locust -f loadtest/locustfile.py` opens the page; `python -m loadtest --profile quick` runs without one and writes a report.
"""
