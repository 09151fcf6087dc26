; Halts in the middle of the handshake.
%include "driver.inc"
    begin
    push_byte 'R'
    finish
