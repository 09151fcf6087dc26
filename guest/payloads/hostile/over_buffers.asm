; An image whose own bytes lie where the TX buffer is: loaded at 0x11000. What it sends overwrites its first ones.
%include "driver.inc"
    begin
    jmp .driver
    times 0x100 - ($ - $$) db 0
.driver:
    reset
    config
    ready
    push_byte 'x'
    finish
