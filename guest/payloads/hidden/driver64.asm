; A SIMVIRTIO driver that sends the text of a seed, in 64-bit code.
%define WIDTH 64
%include "hidden.inc"
%include "hidden_driver.inc"
