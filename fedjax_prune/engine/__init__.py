"""How a round runs; knows no algorithm and no mask."""
