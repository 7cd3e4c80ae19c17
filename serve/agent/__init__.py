"""The agent: front door of its node, `python -m serve.agent`.

It supervises TorchServe (loopback only), keeps what is served equal to what the bucket's aliases say, routes each request to
one release, and reports. It never loads a model and never imports torch.
"""
