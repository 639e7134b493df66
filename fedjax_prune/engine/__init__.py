"""The engine: how a round runs. It knows no algorithm and no mask."""
