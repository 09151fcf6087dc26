; Moves the head back, which reads as an almost full queue. The queue holds only 'R', so this is harmless.
%include "driver.inc"
    begin
    fill 'R', 256
    mov ecx, 5
    mov [rdi + 0x10], ecx
    wait_consumed
    mov ecx, 3
    mov [rdi + 0x10], ecx
    wait_consumed
    mov byte [rdi + 7], 0       ; DRIVER_ACK
    config
    ready
    push_byte 'x'
    finish
