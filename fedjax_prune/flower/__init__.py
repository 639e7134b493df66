"""Real clients: the algorithms of the library as apps of Flower."""
