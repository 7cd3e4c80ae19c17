"""What every task needs: reading a request, saying what is wrong with it, choosing a device, loading a model folder."""
