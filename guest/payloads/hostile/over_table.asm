; An image that covers the device table, because it is loaded at 0x10000. It sets the count to 0xFFFF.
%include "driver.inc"
    begin
    jmp short .driver
    times 0x0A - ($ - $$) db 0
    dw 0xFFFF
    times 0x70 - ($ - $$) db 0
.driver:
    reset
    push_byte 'C'
    finish
