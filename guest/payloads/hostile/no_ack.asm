; Pushes 'C' with DRIVER_OK instead of DRIVER_ACK in driver_status.
%include "driver.inc"
    begin
    reset
    mov byte [rdi + 7], 4
    push_byte 'C'
    finish
