; Pushes data in Config, before DRIVER_OK.
%include "driver.inc"
    begin
    reset
    config
    push_byte 'A'
    finish
