"""What everything may use: devices, seeds, files, processes, memory limits, forecasts, and checks of arguments."""
