"""The routes under `/v1`: what clients of OpenAI's API send, as predictions, and the answers in the words that they expect.

Nothing is decided here about models, workers or limits: a request becomes a prediction body and goes through the door like any
other. `requests` translates on the way in, `answers` and `streams` on the way out, `errors` says what went wrong.
"""
