; A SIMVIRTIO driver that sends the text of a seed, in 32-bit code.
%define WIDTH 32
%include "hidden.inc"
%include "hidden_driver.inc"
