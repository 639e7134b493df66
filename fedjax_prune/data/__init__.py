"""The room that reads data sets, splits them over clients and augments images."""
