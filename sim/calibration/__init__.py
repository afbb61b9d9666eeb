"""From measurements to calibrations: readers of measured data and fits of the laws to them."""
