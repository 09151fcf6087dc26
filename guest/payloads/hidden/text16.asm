; Prints the text of a seed, in 16-bit code.
%define WIDTH 16
%include "hidden.inc"
%include "hidden_text.inc"
