; An image that covers the TX buffer, because it is loaded at 0x11000. The bytes that it sends overwrite its first
; bytes.
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
