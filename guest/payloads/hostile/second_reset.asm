; Pushes 'R' twice, which is allowed, then continues.
%include "driver.inc"
    begin
    reset
    reset
    config
    ready
    push_byte 'x'
    finish
