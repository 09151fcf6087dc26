; Overwrites the device table, then sends 'C', so that the device must add an entry.
%include "driver.inc"
    begin
    mov word [0x1000A], 0xFFFF
    reset
    push_byte 'C'
    finish
