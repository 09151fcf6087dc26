; Pushes 'C' with DRIVER_OK where DRIVER_ACK should be.
%include "driver.inc"
    begin
    reset
    mov byte [rdi + 7], 4
    push_byte 'C'
    finish
