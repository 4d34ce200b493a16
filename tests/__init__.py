import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell runs in the background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
