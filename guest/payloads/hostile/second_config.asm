; Pushes 'C' twice, which is allowed, then continues. The device table has one entry.
%include "driver.inc"
    begin
    reset
    config
    config
    ready
    cmp word [0x1000A], 1
    jne .wrong
    push_byte 'x'
    finish
.wrong:
    hlt
