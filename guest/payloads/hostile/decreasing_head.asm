; A head that goes back: to a ring a queue that is almost full. All that lies there is 'R', so it is harmless.
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
