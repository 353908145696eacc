"""Methods that train no network: kernel regression on the synthetic set."""
