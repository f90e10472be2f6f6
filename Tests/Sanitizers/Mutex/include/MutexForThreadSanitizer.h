// Nothing to call: the library stands in for two functions of Swift's.
