"""One file a mechanism: how to draw its inputs, the laws it obeys, the bugs planted to test the tests."""
