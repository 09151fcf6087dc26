; Overwrites the device table, then asks to be entered there.
%include "driver.inc"
    begin
    mov word [0x1000A], 0xFFFF
    reset
    push_byte 'C'
    finish
