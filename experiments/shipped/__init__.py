"""A sample of CIFAR-10's training images, on which the papers' quick versions train."""
